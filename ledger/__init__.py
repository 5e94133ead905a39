"""The ledger: accounts, escrows, results and blocks. It judges evidence and arithmetic, never computations."""
