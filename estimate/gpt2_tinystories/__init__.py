"""GPT-2 on TinyStories: 64,512 components."""
