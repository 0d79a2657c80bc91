"""OpenAI's dialect: chat completions and completions, with what llama-server added to them."""
