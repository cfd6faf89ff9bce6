"""Evaluation of trained models: find one, score or predict rows, report, test differences, check rules."""
