"""The OpenAI dialect of Responses: what Codex speaks, and what opencode, pi and Copilot can."""
