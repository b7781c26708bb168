"""The protocol engine: frames, offsets, windows and subflow states.

Sans-IO: nothing in this package imports socket, selectors, os or time. The clock comes in as
`now` (seconds, monotonic), bytes come in as memoryviews, and the caller asks what to send.
"""
