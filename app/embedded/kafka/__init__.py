"""A real Apache Kafka of one's own, from Maven's jars."""

from app.embedded.kafka.broker import KafkaBroker
from app.embedded.kafka.jars import APT_COMMAND, KAFKA_VERSION, fetch_jars, jar_folder

__all__ = ["APT_COMMAND", "KAFKA_VERSION", "KafkaBroker", "fetch_jars", "jar_folder"]
