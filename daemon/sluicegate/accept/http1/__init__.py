"""The fast way in: HTTP/1.1 on the hot routes, from the socket to the pipeline without ASGI or a task per request.

One task per connection. It serves what inference traffic is made of: a POST to an inference route with a declared
length. Anything else (other routes, HTTP/1.0, HTTP/2, chunked or multipart bodies, and every head that is not
valid) is handed over, with every byte as it came, to Hypercorn. It gives an HTTP/1.1 connection back as soon as a
request comes between two others that may be one for the fast way.
"""
