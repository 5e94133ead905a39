"""The orchestrator: splits tasks into jobs, streams them to workers, audits the answers, has the ledger settle them."""
