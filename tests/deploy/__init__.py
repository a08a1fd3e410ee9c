"""The files of deploy/, as far as they can be tried without what they are made for."""
