//! The words of a script: in place of the crate's own, which are not part of its interface and need the rest of it.

#[derive(Default)]
pub struct Words(pub Vec<Vec<u8>>);

impl Words {
    pub fn text(&mut self, word: &(impl ToString + ?Sized)) -> &mut Self {
        self.bytes(word.to_string())
    }

    pub fn bytes(&mut self, word: impl AsRef<[u8]>) -> &mut Self {
        self.0.push(word.as_ref().to_vec());
        self
    }
}
