"""A proxy in front of a hosted model: what passes, what is changed on the way, and what is told of it afterwards.

The way of a request: `app` lets it in, and `forwarder` takes it through. `inbound` has its body, `outgoing` what is
sent on of it, `upstream` where that goes; `passage` is what became of it. What is sent on otherwise than it came is
made in `changing`, and what has passed is looked at in `observing`. `building` puts it all together.
"""
