//! What a disk holds for certain: what the next power loss would leave if it took all that it may.
//!
//! For a judge outside, who does not ask the program what it believes to be durable.

use std::path::{Component, Path};

use bytes::Bytes;

use super::image::{Image, clean};
use super::names::{Entry, Inode, ROOT};

impl Image {
    /// The bytes of a file from `from` to its end, as far as name and contents are on the medium. None when the name is not.
    /// Damage to the medium shows; no fault counts as seen by this.
    pub fn on_medium(&self, path: &Path, from: u64) -> Option<Bytes> {
        let Some(Entry::File(inode)) = self.durable(path) else { return None };
        let content = &self.nodes.get(&inode)?.medium.content;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        Some(content.read(from, content.len()).into())
    }

    /// The names in a directory that are on the medium, in order.
    pub fn names_on_medium(&self, dir: &Path) -> Vec<String> {
        let inode = match self.durable(dir) {
            Some(Entry::Dir(inode)) => inode,
            None if clean(dir).as_os_str().is_empty() => ROOT,
            _ => return Vec::new(),
        };
        self.dirs.get(&inode).map(|dir| dir.durable.keys().cloned().collect()).unwrap_or_default()
    }

    fn durable(&self, path: &Path) -> Option<Entry> {
        let (mut at, mut found): (Inode, Option<Entry>) = (ROOT, None);
        for part in clean(path).components() {
            let Component::Normal(name) = part else { return None };
            if let Some(entry) = found {
                let Entry::Dir(inode) = entry else { return None };
                at = inode;
            }
            found = Some(*self.dirs.get(&at)?.durable.get(name.to_string_lossy().as_ref())?);
        }
        found
    }
}
