"""The trainer's machine learning: base models, batched generation, LoRA and private training.

Everything here takes plain values and returns plain values: no settings, no SQL, no Kafka, no HTTP. It is the
only part of the project, beside the policy engine's embedding evaluator, that imports torch.
"""
