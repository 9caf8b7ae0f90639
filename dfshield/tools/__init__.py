"""Commands that answer a question and leave no artefact."""
