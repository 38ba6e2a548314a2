"""The embedded stack: a broker, Redis and PostgreSQL of one's own, as child processes on loopback ports.

Nothing here is imported by a worker: it stands in for the services that production reaches by URL.
"""
