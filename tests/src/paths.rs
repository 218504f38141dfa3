//! Where the binary under test and the guest are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the repository.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the workspace")
}

/// The folder of this build's profile, `target/debug` say.
fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    exe.ancestors()
        .find(|dir| dir.join("deps").is_dir())
        .expect("a test lies in target/<profile>/deps")
        .to_owned()
}

/// The target directory of this build.
pub fn target() -> PathBuf {
    profile_dir()
        .parent()
        .expect("a profile lies in the target directory")
        .to_owned()
}

/// The `epochgate` to test: `EPOCHGATE_BIN`, else the one beside this test, brought up to date first (cargo builds a binary
/// for the tests of its own package only, so it may be missing or older than the code).
pub fn epochgate() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(named) = std::env::var_os("EPOCHGATE_BIN") {
            return named.into();
        }
        let profile = profile_dir();
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        build
            .args(["build", "--quiet", "--package", "epochgate", "--target-dir"])
            .arg(target())
            .current_dir(workspace());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let built = build.status().expect("cargo can be started");
        assert!(
            built.success(),
            "epochgate does not build; `cargo build -p epochgate` says why"
        );
        profile.join("epochgate")
    })
}

/// The folder with `vmlinuz` and `initrd.gz`.
pub fn guest() -> PathBuf {
    let guest = std::env::var_os("EPOCHGATE_GUEST")
        .map_or_else(|| workspace().join("target/guest"), PathBuf::from);
    assert!(
        guest.join("vmlinuz").is_file() && guest.join("initrd.gz").is_file(),
        "there is no test guest in {}; build it with `make guest`, or name its folder in EPOCHGATE_GUEST",
        guest.display()
    );
    guest
}

/// The kernel command line of the guest.
pub fn cmdline() -> String {
    let path = workspace().join("tests/guest/cmdline");
    let text = std::fs::read_to_string(path).expect("tests/guest/cmdline can be read");
    text.trim().to_owned()
}

/// The QEMU to use.
pub fn qemu() -> String {
    std::env::var("EPOCHGATE_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned())
}
