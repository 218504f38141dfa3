//! With lines as they stand in `/proc/self/mountinfo` of real machines.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::gateway::{ExportConfig, GatewayConfig};

const MOUNTS: &str = r"
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard,resv_strict,resuid=65534,resgid=65534
25 24 0:23 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw,size=24684084k
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
40 27 8:17 / /srv/fast rw,relatime shared:29 - ext4 /dev/sdb1 rw,nobarrier,data=writeback
41 27 8:33 / /srv/old rw,relatime - ext3 /dev/sdc1 rw,barrier=0
42 27 8:49 / /srv/disk rw,relatime - xfs /dev/sdd1 rw,attr2,inode64,logbufs=8,logbsize=32k,noquota
50 27 0:44 / /mnt/nas rw,relatime shared:300 - nfs4 nas:/export/vm rw,vers=4.2,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys,clientaddr=192.0.2.5,local_lock=none,addr=192.0.2.9
51 27 0:45 / /mnt/soft rw,relatime - nfs nas:/export/old rw,vers=3,rsize=65536,wsize=65536,namlen=255,soft,nolock,proto=tcp,timeo=50,retrans=3,sec=sys,mountaddr=192.0.2.9,mountvers=3,mountproto=tcp,local_lock=all,addr=192.0.2.9
60 27 0:50 / /mnt/ssh rw,nosuid,nodev,relatime - fuse.sshfs me@host:/x rw,user_id=0,group_id=0
61 27 0:51 / /mnt/cifs rw,relatime - cifs //nas/share rw,vers=3.1.1,cache=strict,soft,nostrictsync,addr=192.0.2.9
70 27 0:60 / /var/lib/box/merged rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w,volatile
80 27 0:70 / /mnt/with\040space rw,relatime - tmpfs none rw
81 40 7:0 / /srv/fast/inner rw,relatime - ext4 /dev/loop0 rw
82 27 253:0 / /zram rw,relatime - ext4 /dev/zram0 rw,discard
90 27 8:65 / /over rw,relatime - ext4 /dev/sde1 rw
91 90 0:90 / /over rw,relatime - tmpfs tmpfs rw
";

fn system() -> System {
    System {
        mounts: mounts::parse(MOUNTS),
        loops: [
            ("loop0".to_owned(), PathBuf::from("/srv/fast/inner.img")),
            ("loop1".to_owned(), PathBuf::from("/dev/shm/disk.img")),
            ("loop2".to_owned(), PathBuf::from("/srv/disk/x.img")),
        ]
        .into(),
    }
}

fn image(path: &str) -> Place {
    Place {
        what: format!("export '{path}'"),
        path: path.into(),
        device: path
            .strip_prefix("/dev/")
            .filter(|name| !name.contains('/'))
            .map(str::to_owned),
        grows: false,
        is_log: false,
    }
}

fn said(path: &str) -> Vec<String> {
    advice(&[image(path)], &system())
}

#[test]
fn a_plain_disk_is_not_worth_a_word() {
    for path in [
        "/srv/vm.img",
        "/srv/disk/vm.img",
        "/mnt2/vm.img",
        "/dev/sdd2",
        "/dev/dm-3",
        "/dev/loop2",
        "/dev/loop7",
        "/dev/ramdisk",
    ] {
        assert_eq!(said(path), Vec::<String>::new(), "{path}");
    }
}

#[test]
fn each_concern_is_named_with_what_to_do() {
    for (path, words) in [
        ("/dev/shm/vm.img", &["tmpfs on /dev/shm", "in memory"][..]),
        ("/mnt/with space/vm.img", &["in memory"]),
        ("/over/vm.img", &["in memory"]),
        ("/zram/vm.img", &["/dev/zram0", "in memory"]),
        ("/dev/ram0", &["in memory"]),
        (
            "/dev/loop1",
            &["/dev/loop1", "/dev/shm/disk.img", "in memory"],
        ),
        ("/srv/fast/vm.img", &["ext4 on /srv/fast", "nobarrier"]),
        ("/srv/fast/inner/vm.img", &["/dev/loop0", "nobarrier"]),
        ("/srv/old/vm.img", &["ext3", "barrier=0"]),
        ("/mnt/nas/vm.img", &["nfs4 on /mnt/nas", "export with sync"]),
        ("/mnt/ssh/vm.img", &["fuse.sshfs", "up to the program"]),
    ] {
        let said = said(path);
        assert_eq!(said.len(), 1, "{path}: {said:?}");
        for word in words {
            assert!(said[0].contains(word), "{path}: {said:?}");
        }
    }
}

#[test]
fn several_concerns_of_one_mount_are_all_named() {
    let soft = said("/mnt/soft/vm.img");
    assert_eq!(soft.len(), 3, "{soft:?}");
    for word in ["hard", "nolock", "sync"] {
        assert!(soft.iter().any(|said| said.contains(word)), "{soft:?}");
    }
    assert_eq!(said("/mnt/cifs/vm.img").len(), 2);
    let overlay = said("/var/lib/box/merged/vm.img");
    assert!(overlay.iter().any(|said| said.contains("volatile")));
    assert!(overlay.iter().any(|said| said.contains("container")));
}

#[test]
fn the_same_about_many_is_said_once() {
    let places: Vec<Place> = (0..7)
        .map(|number| image(&format!("/dev/shm/{number}")))
        .collect();
    let said = advice(&places, &system());
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("'/dev/shm/3' and 3 more"), "{said:?}");
}

#[test]
fn a_log_beside_an_image_that_grows_is_worth_a_word() {
    let log = |path: &str| Place {
        what: "the log of group 'vm1'".to_owned(),
        is_log: true,
        ..image(path)
    };
    let sparse = Place {
        grows: true,
        ..image("/srv/disk/vm.img")
    };
    let together = advice(&[log("/srv/disk/log"), sparse.clone()], &system());
    assert_eq!(together.len(), 1, "{together:?}");
    assert!(together[0].contains("share the file system on /srv/disk"));
    assert!(advice(&[log("/srv/log"), sparse], &system()).is_empty());
    let full = image("/srv/disk/vm.img");
    assert!(advice(&[log("/srv/disk/log"), full], &system()).is_empty());
}

#[test]
fn lines_that_make_no_sense_are_passed_over() {
    let text = "\n27 1 254:0 /\nx - y\n1 2 3:4 / /a rw - ext4\n1 2 3:4 / /b rw - ext4 /dev/x rw\n";
    let mounts = mounts::parse(text);
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].point, PathBuf::from("/b"));
    assert_eq!(mounts[0].device(), Some("x"));
    assert_eq!(mounts::holding(&mounts, "/bc/d".as_ref()), None);
}

#[test]
fn this_system_can_be_asked() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let config = GatewayConfig {
        exports: vec![ExportConfig {
            image,
            ..ExportConfig::default()
        }],
        ..GatewayConfig::default()
    };
    let here = System::now();
    assert!(!here.mounts.is_empty());
    let expected = mounts::holding(&here.mounts, &dir.path().canonicalize().unwrap())
        .map_or(0, |mount| of_mount(mount).len());
    // A temporary directory may itself be in memory.
    assert!(storage_advice(&config).len() >= expected);
}
