//! Objects in a directory and at a real S3 server: what is promised of both, and what is said when it can't be kept.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use epochgate_tests::object_server::ObjectServer;
use nbd_server::storage::objects::{ObjectError, Objects, Place};

fn directory() -> (tempfile::TempDir, Objects) {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::Directory(dir.path().join("a/b"));
    assert!(matches!(
        Objects::open(&place),
        Err(ObjectError::Unusable { .. })
    ));
    let objects = Objects::create(&place).unwrap();
    (dir, objects)
}

fn bucket(server: &ObjectServer, place: &str) -> Objects {
    Objects::open_with(&place.parse().unwrap(), &server.environment()).unwrap()
}

fn names(objects: &Objects, folder: &str) -> Vec<String> {
    let found = objects.list(folder, 1000).unwrap();
    let mut names: Vec<String> = found.into_iter().map(|meta| meta.name).collect();
    names.sort();
    names
}

/// What holds for every place.
fn keeps_its_promises(objects: &Objects) {
    assert_eq!(names(objects, ""), [""; 0]);
    objects.put("x/one", Bytes::from_static(b"1234")).unwrap();
    objects.put("x/one", Bytes::from_static(b"123456")).unwrap();
    objects.put("xy", Bytes::new()).unwrap();
    objects.put_new("x/two", Bytes::from_static(b"2")).unwrap();
    let again = objects
        .put_new("x/two", Bytes::from_static(b"3"))
        .unwrap_err();
    assert!(again.is_already_there(), "{again}");
    assert_eq!(objects.get("x/two", 10).unwrap(), "2");
    assert_eq!(objects.get("x/one", 6).unwrap(), "123456");
    assert_eq!(objects.get("xy", 0).unwrap(), "");
    assert!(matches!(
        objects.get("x/one", 5),
        Err(ObjectError::TooLarge {
            size: 6,
            most: 5,
            ..
        })
    ));
    assert_eq!(objects.get_range("x/one", 1..4).unwrap(), "234");
    assert!(objects.get("x", 9).unwrap_err().is_not_found());
    assert!(objects.get_range("none", 0..4).unwrap_err().is_not_found());
    assert_eq!(objects.head("none").unwrap(), None);
    let meta = objects.head("x/one").unwrap().unwrap();
    assert_eq!((meta.name.as_str(), meta.size), ("x/one", 6));
    objects.copy("x/one", "y/three").unwrap();
    assert!(objects.copy("none", "z").unwrap_err().is_not_found());
    assert_eq!(names(objects, ""), ["x/one", "x/two", "xy", "y/three"]);
    assert_eq!(names(objects, "x"), ["x/one", "x/two"]);
    assert!(objects.list("x", 1).is_err());
    objects.delete("x/one").unwrap();
    objects.delete("x/one").unwrap();
    assert_eq!(names(objects, "x"), ["x/two"]);
    for name in [
        "",
        "/",
        "../x",
        "x/../../y",
        "x//y",
        "x/",
        "/x",
        ".",
        "x\0y",
    ] {
        let refused = objects.put(name, Bytes::from_static(b"x"));
        assert!(
            matches!(refused, Err(ObjectError::Name { .. })),
            "{name:?}: {refused:?}"
        );
    }
}

/// More than one part, in pieces that are none.
fn streams(objects: &Objects) {
    let piece = Bytes::from(
        (0..3_000_017_u32)
            .map(|n| (n % 251) as u8)
            .collect::<Vec<u8>>(),
    );
    let mut upload = objects.put_stream("big").unwrap();
    for _ in 0..7 {
        upload.write(piece.clone()).unwrap();
        assert_eq!(objects.head("big").unwrap(), None);
    }
    upload.finish().unwrap();
    let big = objects.get("big", 1 << 30).unwrap();
    assert_eq!(big.len(), 7 * piece.len());
    assert!(big.chunks(piece.len()).all(|part| part == piece));
    let mut dropped = objects.put_stream("dropped").unwrap();
    dropped.write(piece).unwrap();
    drop(dropped);
    assert_eq!(names(objects, ""), ["big"]);
}

#[test]
fn a_directory_keeps_its_promises() {
    let (_dir, objects) = directory();
    keeps_its_promises(&objects);
}

#[test]
fn a_bucket_keeps_its_promises() {
    let dir = tempfile::tempdir().unwrap();
    let server = ObjectServer::start(dir.path());
    server.make_bucket("bucket");
    keeps_its_promises(&bucket(&server, "s3://bucket"));
    keeps_its_promises(&bucket(&server, "s3://bucket/some/prefix"));
    let other = names(&bucket(&server, "s3://bucket/some/pre"), "");
    assert_eq!(other, [""; 0]);
}

#[test]
fn large_objects_are_streamed() {
    let (dir, objects) = directory();
    streams(&objects);
    let files = std::fs::read_dir(dir.path().join("a/b")).unwrap();
    assert_eq!(files.count(), 1, "an upload that was dropped left a file");
    let server = ObjectServer::start(dir.path());
    server.make_bucket("bucket");
    streams(&bucket(&server, "s3://bucket/p"));
}

#[test]
fn many_threads_may_ask_at_once_also_those_of_a_runtime() {
    let (_dir, objects) = directory();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let inside = objects.clone();
        inside.put("inside", Bytes::from_static(b"x")).unwrap();
    });
    let won = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..16)
            .map(|number: u8| {
                let objects = &objects;
                scope.spawn(move || objects.put_new("race", Bytes::from(vec![number])).is_ok())
            })
            .collect();
        tries
            .into_iter()
            .map(|one| one.join().unwrap())
            .filter(|won| *won)
            .count()
    });
    assert_eq!(won, 1);
    runtime.block_on(async move { drop(objects) });
}

#[test]
fn what_is_wrong_with_a_server_is_said_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let server = ObjectServer::start(dir.path());
    let objects = bucket(&server, "s3://no-such-bucket/p");
    let error = objects.put("x", Bytes::new()).unwrap_err();
    assert!(
        error.to_string().contains("there is no such bucket"),
        "{error}"
    );
    assert!(matches!(error, ObjectError::Unusable { .. }), "{error:?}");
    let text = format!("{error} {error:?} {objects:?}");
    assert!(!text.contains("very-secret"), "{text}");
}

#[test]
fn a_full_directory_is_said_to_be_full() {
    // A limit on the size of files fails in another way than a full disk, so it is a real one.
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
        .arg(dir.path())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("not tested: a file system can't be mounted here");
        return;
    }
    let objects = Objects::open(&Place::Directory(dir.path().to_owned())).unwrap();
    let written = objects.put("x", Bytes::from(vec![1; 1 << 20]));
    let left = names(&objects, "");
    drop(objects);
    let unmounted = std::process::Command::new("umount")
        .arg(dir.path())
        .status();
    assert!(unmounted.unwrap().success());
    assert!(
        matches!(written, Err(ObjectError::Full { .. })),
        "{written:?}"
    );
    assert_eq!(left, [""; 0]);
}
