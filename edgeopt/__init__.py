"""Give it a model, a board and a budget; get back a verified deployment on that board."""

import os

# onnxruntime's wheels write an identifier below ~/.cache and report events to their maker unless
# this is set before they are loaded; nothing here calls home.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"
