"""Secateur's light side: HTTP, database and queue client. Never imports torch, matplotlib or `worker`."""
