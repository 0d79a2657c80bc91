"""Recorded sessions, sent again to servers that are running or to rules of hosted ones, and what each request cost."""
