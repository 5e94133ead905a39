"""What every service's shell shares: server, errors, validation, configuration, storage, authentication, logs."""
