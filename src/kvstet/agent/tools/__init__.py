"""What the agent can do in a workspace: one module for each tool, and what keeps them inside it."""
