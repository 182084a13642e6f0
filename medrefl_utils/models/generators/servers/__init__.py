"""What ``EndpointGenerator`` knows about servers with OpenAI's API.

``client`` sends a request and waits where a server asks for it, at the pace of ``rate_limits``. ``features`` says what
a server accepts, and learns it from refusals; ``probe`` finds it out with a small request. ``adapters`` selects the
base or a LoRA adapter on the server. ``replies`` reads what a server wrote.
"""
