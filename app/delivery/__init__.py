"""Sending webhooks: the loop that claims what is due, one attempt, and the guard on where it may connect."""
