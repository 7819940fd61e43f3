"""A model of machines that cache a network file system's pages, and of how they lose rows.

What the real clients do (measured on NFS 4.2 with two kernels): a write that dirties part of a
page that is cached and up to date is widened to the whole page and written back late, unless the
descriptor is O_DSYNC, whose writes go out at once with just their own bytes; stores into a map
dirty the whole page; cached pages are served to readers until they are dropped.
"""

PAGE = 4096


class Server:
    """The truth: file contents by name."""

    def __init__(self, contents):
        self.files = {name: bytearray(content) for name, content in contents.items()}

    def write(self, name, offset, data):
        file = self.files[name]
        file.extend(bytes(max(0, offset + len(data) - len(file))))
        file[offset : offset + len(data)] = data


class Client:
    """One machine: its page cache before the server."""

    def __init__(self, server):
        self.server = server
        self.pages = {}  # (name, page number): bytes as this machine believes them
        self.dirty = {}  # keys of pages to be written back whole; a dict keeps their order

    def _page(self, name, number):
        key = (name, number)
        if key not in self.pages:
            content = self.server.files[name][number * PAGE : (number + 1) * PAGE]
            self.pages[key] = bytearray(content)
        return self.pages[key]

    def read(self, name, offset, size):
        """Read through the cache: stale until :meth:`drop`."""
        first, last = offset // PAGE, (offset + max(size, 1) - 1) // PAGE
        content = b"".join(bytes(self._page(name, n)) for n in range(first, last + 1))
        return content[offset - first * PAGE :][:size]

    def write(self, name, offset, data, synchronous):
        """A positioned write (``synchronous`` = O_DSYNC) or a store into a writable map."""
        if synchronous:
            self.server.write(name, offset, data)
        position = offset
        while data:
            number, start = divmod(position, PAGE)
            part, data = data[: PAGE - start], data[PAGE - start :]
            page = self._page(name, number)
            page[start : start + len(part)] = part
            if not synchronous:
                self.dirty[name, number] = None
            position += len(part)

    def flush(self, name):
        """msync, fsync or the kernel's own write-back: dirty pages go out whole."""
        for key in [key for key in self.dirty if key[0] == name]:
            del self.dirty[key]
            self.server.write(name, key[1] * PAGE, bytes(self.pages[key]))

    def drop(self, name):
        """posix_fadvise(DONTNEED): clean pages are forgotten."""
        for key in [k for k in self.pages if k[0] == name and k not in self.dirty]:
            del self.pages[key]

    def reopen(self, name):
        """Close-to-open consistency, at its most generous: an opened file starts afresh."""
        self.drop(name)
