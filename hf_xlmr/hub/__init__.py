"""The Hub as a service: its refusals in one sentence each, its licences, and calls that Ctrl-C interrupts."""
