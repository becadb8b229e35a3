"""From two plain configs to a distiller's: what :file:`tools/distill.py` is made of."""
