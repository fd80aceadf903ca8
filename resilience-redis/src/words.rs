//! The words of a script.

use std::{fmt, io::Write};

/// Words of a script, one behind the other: a publish has thousands.
#[derive(Default)]
pub(crate) struct Words {
    all: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Words {
    pub(crate) fn text(&mut self, word: &(impl fmt::Display + ?Sized)) -> &mut Self {
        write!(self.all, "{word}").expect("memory takes what it is given");
        self.ends.push(self.all.len());
        self
    }

    pub(crate) fn bytes(&mut self, word: impl AsRef<[u8]>) -> &mut Self {
        self.all.extend_from_slice(word.as_ref());
        self.ends.push(self.all.len());
        self
    }

    pub(crate) fn refs(&self) -> Vec<&[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        let spans = begins.zip(&self.ends);
        spans.map(|(begin, end)| &self.all[begin..*end]).collect()
    }
}
