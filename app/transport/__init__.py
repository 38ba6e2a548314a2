"""How Kafka's records reach agents: whole fetched chunks instead of one Faust event a message. See `README.md`."""

from app.transport.chunks import Chunk
from app.transport.consumer import ChunkConsumer, ChunkTransport, UncommittedTransport

__all__ = ["Chunk", "ChunkConsumer", "ChunkTransport", "UncommittedTransport"]
