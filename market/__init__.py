"""The market: tasks with money behind them, leased to orchestrators. `core.py` decides, everything else carries out."""
