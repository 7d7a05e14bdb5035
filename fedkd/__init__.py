"""fedkd: consolidate pre-trained silo models by knowledge distillation, then federate.

The method lives here in plain PyTorch; Flower's two sides are the packages ``strategies`` and
``clients``; whole studies are run by ``experiments``.
"""

__version__ = "0.1.0"
