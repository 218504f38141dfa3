//! Builds the shim that is preloaded into QEMU, as a shared object for `include_bytes!`.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=shim/uffd_shim.c");
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else {
        panic!("cargo sets OUT_DIR for build scripts");
    };
    let mut compiler = cc::Build::new()
        .opt_level(2)
        .warnings(true)
        .get_compiler()
        .to_command();
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(out.join("uffd_shim.so"))
        .arg("shim/uffd_shim.c");
    match compiler.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the C compiler could not build shim/uffd_shim.c ({status})"),
        Err(error) => panic!("a C compiler is needed to build shim/uffd_shim.c: {error}"),
    }
}
