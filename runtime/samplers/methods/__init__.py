"""One module per sampling method: functions from a noise schedule, a configuration and options to a plan."""
