"""Sans-I/O protocol engines: bytes in, events out; intents in, bytes out. No sockets, clocks or tasks here."""
