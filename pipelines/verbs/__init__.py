"""The commands, one file a verb. They assemble; what two of them share is a noun elsewhere, so none imports another."""
