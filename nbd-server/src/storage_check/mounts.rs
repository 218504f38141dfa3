//! The mounts of this process, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// `major:minor` of the file system, the same for all mounts of it.
    pub number: String,
    /// Type of the file system, such as `ext4` or `nfs4`.
    pub fs_type: String,
    /// What is mounted: a device, or whatever the type takes for one.
    pub source: String,
    /// Options of the mount and of the file system.
    pub options: Vec<String>,
}

impl Mount {
    /// Whether an option is set, written as it stands in the text.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|set| set == option)
    }

    /// The kernel's name of the block device that is mounted, where the source is one by its own name.
    pub fn device(&self) -> Option<&str> {
        let name = self.source.strip_prefix("/dev/")?;
        (!name.is_empty() && !name.contains('/')).then_some(name)
    }
}

/// Reads all mounts, in the order of the text. Lines that make no sense are passed over.
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Mount> {
    // id parent major:minor root point options [tags] - type source super-options
    let (own, of_fs) = line.split_once(" - ")?;
    let mut own = own.split(' ');
    let (_id, _parent, number, _root) = (own.next()?, own.next()?, own.next()?, own.next()?);
    let (point, options) = (own.next()?, own.next()?);
    let mut of_fs = of_fs.split(' ');
    let (fs_type, source) = (of_fs.next()?, of_fs.next()?);
    let options = options.split(',').chain(of_fs.next()?.split(','));
    Some(Mount {
        point: PathBuf::from(unescape(point)),
        number: number.to_owned(),
        fs_type: fs_type.to_owned(),
        source: unescape(source),
        options: options.map(str::to_owned).collect(),
    })
}

/// Spaces and the like stand there as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.first_chunk::<3>().filter(|_| first == b'\\');
        let value = digits.and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match value {
            Some(value) => {
                bytes.push(value);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The mount that holds `path`, which has no links: the one mounted deepest, and of those the last, which hides the others.
pub fn holding<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let depth = |mount: &&Mount| mount.point.components().count();
    let on_the_way = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    on_the_way.max_by_key(depth)
}
