"""What browsers and REST clients meet: Envoy in front of market, ledger and orchestrator, set up from the contracts."""
