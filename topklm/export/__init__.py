"""Our models as others read them: Hugging Face, Meta Lingua; and whether both sides compute the same."""
