//! A stretch of a file as a stream of bytes.

use super::super::WeightsError;
use super::super::source::Source;

const BUFFER: usize = 1 << 16;

/// Reads a part of a file from its beginning to its end.
pub(super) struct Input<'a> {
    pub(super) source: &'a Source,
    buffer: Vec<u8>,
    /// How much of the buffer is read.
    used: usize,
    /// Where in the file the buffer ends.
    position: u64,
    end: u64,
}

impl<'a> Input<'a> {
    /// The part of `source` from `begin` to `end`, which lies in it.
    pub(super) fn new(source: &'a Source, begin: u64, end: u64) -> Self {
        Self {
            source,
            buffer: Vec::new(),
            used: 0,
            position: begin,
            end,
        }
    }

    /// Where in the file the next byte is.
    pub(super) fn position(&self) -> u64 {
        self.position - (self.buffer.len() - self.used) as u64
    }

    fn remaining(&self) -> u64 {
        self.end - self.position()
    }

    pub(super) fn byte(&mut self) -> Result<u8, WeightsError> {
        if self.used == self.buffer.len() {
            let len = (self.end - self.position).min(BUFFER as u64) as usize;
            if len == 0 {
                return Err(self.early());
            }
            self.buffer.resize(len, 0);
            self.source.read_at(self.position, &mut self.buffer)?;
            self.position += len as u64;
            self.used = 0;
        }
        self.used += 1;
        Ok(self.buffer[self.used - 1])
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            *byte = self.byte()?;
        }
        Ok(bytes)
    }

    /// The next `len` bytes, which are allocated only if they are there.
    pub(super) fn take(&mut self, len: u64) -> Result<Vec<u8>, WeightsError> {
        if len > self.remaining() {
            return Err(self.early());
        }
        let mut bytes = Vec::with_capacity(len as usize);
        for _ in 0..len {
            bytes.push(self.byte()?);
        }
        Ok(bytes)
    }

    /// What stands before the next line feed, at most `limit` bytes.
    pub(super) fn line(&mut self, limit: usize) -> Result<Vec<u8>, WeightsError> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return Ok(line),
                _ if line.len() == limit => {
                    return Err(self.source.invalid("damaged pickle: a name without an end"));
                }
                byte => line.push(byte),
            }
        }
    }

    pub(super) fn skip(&mut self, len: u64) -> Result<(), WeightsError> {
        if len > self.remaining() {
            return Err(self.early());
        }
        let buffered = (self.buffer.len() - self.used) as u64;
        if len <= buffered {
            self.used += len as usize;
        } else {
            self.position += len - buffered;
            self.used = self.buffer.len();
        }
        Ok(())
    }

    fn early(&self) -> WeightsError {
        self.source.invalid("damaged pickle: it ends early")
    }
}
