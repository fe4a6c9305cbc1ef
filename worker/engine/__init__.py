"""A library about networks: train, prune, measure, report. `pipeline.run` is the door."""
