"""The parts of a sweep: its study and space, suggestions, ledger of facts, trials and their controller, report."""
