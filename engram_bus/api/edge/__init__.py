"""uvicorn's two protocol classes with what they lack; nothing else knows of uvicorn but `serve.py`."""
