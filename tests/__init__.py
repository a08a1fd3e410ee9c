"""The tests. Transcripts are played by play.py."""
