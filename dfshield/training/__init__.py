"""The teacher, and the adversarial fine-tuning of a student."""
