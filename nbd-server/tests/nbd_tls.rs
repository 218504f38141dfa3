//! TLS with libnbd's and QEMU's tools: who gets in, what it may attach, and that the data is the same behind it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "nbd_common/certificates.rs"]
mod certificates;
mod nbd_common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use certificates::{Authority, Valid};
use nbd_common::{at_end, option, pattern, run, run_well};
use nbd_server::access::{AccessRule, Rights};
use nbd_server::gateway::{ExportConfig, Gateway, GatewayConfig, GatewayError};
use nbd_server::server::BoundAddress;
use nbd_server::tls::{TlsConfig, TlsError, TlsMode};

const SIZE: usize = 48 << 20;

struct Site {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(dir.path(), "authority");
        Self { dir, authority }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.raw")
    }

    fn config(&self, tls: Option<TlsConfig>, access: Vec<AccessRule>) -> GatewayConfig {
        let image = std::fs::File::create(self.image()).unwrap();
        image.set_len(SIZE as u64).unwrap();
        let second = self.dir.path().join("second.raw");
        std::fs::write(&second, [7; 65536]).unwrap();
        let export = |name: &str, image| ExportConfig {
            name: name.to_owned(),
            image,
            read_only: false,
            ..ExportConfig::default()
        };
        GatewayConfig {
            listen: vec![
                "tcp:127.0.0.1:0".to_owned(),
                format!("unix:{}", self.dir.path().join("nbd.sock").display()),
            ],
            tls,
            access,
            exports: vec![export("disk", self.image()), export("second", second)],
            ..GatewayConfig::default()
        }
    }

    fn gateway(&self, mode: TlsMode, access: Vec<AccessRule>) -> Gateway {
        let tls = self.authority.server(Valid::Now, mode);
        Gateway::start(&self.config(Some(tls), access)).unwrap()
    }
}

fn port(gateway: &Gateway) -> u16 {
    match gateway.addresses() {
        [BoundAddress::Tcp(address), ..] => address.port(),
        other => panic!("{other:?}"),
    }
}

fn uri(gateway: &Gateway, export: &str, certificates: &str) -> String {
    let port = port(gateway);
    format!("nbds://localhost:{port}/{export}?tls-certificates={certificates}")
}

fn clear(gateway: &Gateway, export: &str) -> String {
    format!("nbd://localhost:{}/{export}", port(gateway))
}

/// Arguments for QEMU's tools: credentials and the image.
fn qemu(gateway: &Gateway, export: &str, certificates: &str) -> [String; 4] {
    [
        "--object".to_owned(),
        format!("tls-creds-x509,id=tls0,dir={certificates},endpoint=client"),
        "--image-opts".to_owned(),
        format!(
            "driver=nbd,host=localhost,port={},export={export},tls-creds=tls0",
            port(gateway)
        ),
    ]
}

fn fails(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert!(!output.status.success(), "{program} {arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn only_a_valid_certificate_gets_in_where_tls_is_required() {
    let site = Site::new();
    let stranger = Authority::new(site.dir.path(), "stranger");
    let gateway = site.gateway(TlsMode::Require, Vec::new());
    let own = &site.authority;
    let alice = own.client("alice", Valid::Now, own);
    run_well("nbdinfo", &[&uri(&gateway, "disk", &alice)]);
    let list = run_well("nbdinfo", &["--list", &uri(&gateway, "", &alice)]);
    assert!(list.contains("second"), "{list}");
    for refused in [
        own.nobody(),
        own.client("old", Valid::Expired, own),
        own.client("early", Valid::NotYet, own),
        stranger.client("mallory", Valid::Now, own),
    ] {
        fails("nbdinfo", &[&uri(&gateway, "disk", &refused)]);
        // The handshake of TLS 1.2 fails at another place.
        let old = format!(
            "{}&tls-priority=NORMAL:-VERS-ALL:+VERS-TLS1.2",
            uri(&gateway, "disk", &refused)
        );
        fails("nbdinfo", &[&old]);
    }
    // A client that trusts another authority finds no server that it wants.
    let elsewhere = own.client("bob", Valid::Now, &stranger);
    fails("nbdinfo", &[&uri(&gateway, "disk", &elsewhere)]);
    // In the clear there is nothing, at any transport.
    for uri in [clear(&gateway, "disk"), gateway.addresses()[1].uri("disk")] {
        let said = fails("qemu-img", &["info", &uri]);
        assert!(said.contains("TLS"), "{said}");
        fails("nbdinfo", &["--list", &uri]);
    }
    run_well("nbdinfo", &[&uri(&gateway, "disk", &alice)]);
    gateway.shutdown();
}

#[test]
fn allow_takes_both_and_off_says_that_there_is_none() {
    let site = Site::new();
    let own = &site.authority;
    let alice = own.client("alice", Valid::Now, own);
    let gateway = site.gateway(TlsMode::Allow, Vec::new());
    run_well("nbdinfo", &[&uri(&gateway, "disk", &alice)]);
    run_well("nbdinfo", &[&clear(&gateway, "disk")]);
    gateway.shutdown();
    let gateway = site.gateway(TlsMode::Off, Vec::new());
    run_well("nbdinfo", &[&clear(&gateway, "disk")]);
    fails("nbdinfo", &[&uri(&gateway, "disk", &alice)]);
    let arguments = qemu(&gateway, "disk", &alice);
    let arguments: Vec<&str> = ["info"]
        .into_iter()
        .chain(arguments.iter().map(String::as_str))
        .collect();
    let said = fails("qemu-img", &arguments);
    assert!(said.contains("this server has no TLS"), "{said}");
    gateway.shutdown();
}

#[test]
fn unix_sockets_may_be_left_in_the_clear() {
    let site = Site::new();
    let mut tls = site.authority.server(Valid::Now, TlsMode::Require);
    tls.unix_in_clear = true;
    let gateway = Gateway::start(&site.config(Some(tls), Vec::new())).unwrap();
    run_well("nbdinfo", &[&gateway.addresses()[1].uri("disk")]);
    fails("nbdinfo", &[&clear(&gateway, "disk")]);
    gateway.shutdown();
}

#[test]
fn each_certificate_attaches_what_its_rule_says() {
    let site = Site::new();
    let rule = |client: &str, export: &str, rights| AccessRule {
        client: client.to_owned(),
        export: export.to_owned(),
        rights,
    };
    let rules = vec![
        rule("alice", "disk", Rights::ReadWrite),
        rule("bob.example", "disk", Rights::ReadOnly),
        rule("spiffe://example/c*", "second", Rights::ReadWrite),
    ];
    let gateway = site.gateway(TlsMode::Allow, rules);
    let own = &site.authority;
    let [alice, bob, carol] =
        ["alice", "bob", "carol"].map(|name| own.client(name, Valid::Now, own));
    let io = |export: &str, who: &str, command: &str| {
        let arguments = qemu(&gateway, export, who);
        let mut all = vec!["-c", command];
        all.extend(arguments.iter().map(String::as_str));
        run("qemu-io", &all)
    };
    let well = |output: std::process::Output| {
        assert!(output.status.success(), "{output:?}");
    };
    well(io("disk", &alice, "write -P 9 0 64k"));
    assert!(!io("disk", &bob, "write -P 8 0 64k").status.success());
    run_well(
        "nbdinfo",
        &["--is", "read-only", &uri(&gateway, "disk", &bob)],
    );
    let copy = site.dir.path().join("copy");
    run_well(
        "nbdcopy",
        &[&uri(&gateway, "disk", &bob), copy.to_str().unwrap()],
    );
    assert_eq!(std::fs::read(&copy).unwrap()[..65536], [9; 65536]);
    well(io("second", &carol, "write -P 3 0 4k"));
    for (export, who) in [("second", &alice), ("second", &bob), ("disk", &carol)] {
        let output = io(export, who, "read 0 4k");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("access rules"),
            "{said}"
        );
    }
    let seen = run_well("nbdinfo", &["--list", "--json", &uri(&gateway, "", &carol)]);
    assert!(
        seen.contains("\"second\"") && !seen.contains("\"disk\""),
        "{seen}"
    );
    // Without a certificate nobody is known.
    let said = fails("qemu-img", &["info", &clear(&gateway, "disk")]);
    assert!(said.contains("access rules"), "{said}");
    gateway.shutdown();
}

#[test]
fn large_transfers_over_four_connections_come_through() {
    let site = Site::new();
    let gateway = site.gateway(TlsMode::Require, Vec::new());
    let own = &site.authority;
    let alice = own.client("alice", Valid::Now, own);
    let (input, output) = (site.dir.path().join("in"), site.dir.path().join("out"));
    for (seed, priority) in [(1, ""), (2, "&tls-priority=NORMAL:-VERS-ALL:+VERS-TLS1.2")] {
        let content = pattern(SIZE, seed);
        std::fs::write(&input, &content).unwrap();
        let uri = format!("{}{priority}", uri(&gateway, "disk", &alice));
        for size in ["65536", "4194304"] {
            let size = format!("--request-size={size}");
            let common = ["--connections=4", "--requests=16", "--flush", &size];
            let to = [&common[..], &[input.to_str().unwrap(), &uri]].concat();
            run_well("nbdcopy", &to);
            assert!(
                std::fs::read(site.image()).unwrap() == content,
                "{size}: the image differs"
            );
            let _ = std::fs::remove_file(&output);
            let from = [&common[..], &[&uri, output.to_str().unwrap()]].concat();
            run_well("nbdcopy", &from);
            assert!(
                std::fs::read(&output).unwrap() == content,
                "{size}: what was read differs"
            );
        }
    }
    let arguments = qemu(&gateway, "disk", &alice);
    let [object, credentials, _, image] = arguments.each_ref().map(String::as_str);
    run_well(
        "qemu-img",
        &[
            "compare",
            object,
            credentials,
            "--image-opts",
            image,
            &format!("driver=file,filename={}", input.display()),
        ],
    );
    gateway.shutdown();
}

/// The server's answers and the end of the connection, without TLS.
fn conversation(gateway: &Gateway, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port(gateway))).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

#[test]
fn what_comes_behind_starttls_in_the_clear_ends_the_connection() {
    let site = Site::new();
    let gateway = site.gateway(TlsMode::Allow, Vec::new());
    // STRUCTURED_REPLY put behind STARTTLS by somebody on the way.
    let injected = [option(5, &[]), option(8, &[])].concat();
    let mut stream = conversation(&gateway, &injected);
    let mut rest = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut rest);
    assert!(
        rest.len() <= 20,
        "nothing is answered but STARTTLS: {rest:?}"
    );
    // What is no TLS at all ends it as well.
    let mut stream = conversation(&gateway, &option(5, &[]));
    stream.read_exact(&mut [0; 20]).unwrap();
    stream.write_all(&option(3, &[])).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 20, "an alert at most: {rest:?}");
    gateway.shutdown();
}

fn start_error(site: &Site, tls: TlsConfig) -> TlsError {
    match Gateway::start(&site.config(Some(tls), Vec::new())) {
        Err(GatewayError::Tls(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_are_of_no_use_are_named_at_the_start() {
    let site = Site::new();
    let own = &site.authority;
    let good = own.server(Valid::Now, TlsMode::Require);
    let says = |tls: TlsConfig, words: &[&str]| {
        let text = start_error(&site, tls).to_string();
        for word in words {
            assert!(text.contains(word), "{text}");
        }
    };
    let missing = Path::new("missing.pem").to_path_buf();
    says(
        TlsConfig {
            certificate: missing.clone(),
            ..good.clone()
        },
        &["missing.pem", "certificate"],
    );
    says(
        TlsConfig {
            key: missing.clone(),
            ..good.clone()
        },
        &["missing.pem", "private key"],
    );
    says(
        TlsConfig {
            client_ca: Some(missing),
            ..good.clone()
        },
        &["missing.pem"],
    );
    says(
        TlsConfig {
            key: good.certificate.clone(),
            ..good.clone()
        },
        &["private key"],
    );
    let text = site.dir.path().join("text.pem");
    std::fs::write(&text, "no PEM").unwrap();
    says(
        TlsConfig {
            certificate: text.clone(),
            ..good.clone()
        },
        &["text.pem"],
    );
    says(
        TlsConfig {
            client_ca: Some(text),
            ..good.clone()
        },
        &["text.pem"],
    );
    let client = PathBuf::from(own.client("alice", Valid::Now, own));
    says(
        TlsConfig {
            key: client.join("client-key.pem"),
            ..good
        },
        &["does not belong", "client-key.pem"],
    );
    says(
        own.server(Valid::Expired, TlsMode::Require),
        &["expired at 2021"],
    );
    says(
        own.server(Valid::NotYet, TlsMode::Allow),
        &["valid from 2090"],
    );
}

#[test]
fn a_new_certificate_is_taken_without_a_restart() {
    let site = Site::new();
    let own = &site.authority;
    let gateway = site.gateway(TlsMode::Require, Vec::new());
    let alice = own.client("alice", Valid::Now, own);
    let next = Authority::new(site.dir.path(), "next");
    let bob = next.client("bob", Valid::Now, &next);
    fails("nbdinfo", &[&uri(&gateway, "disk", &bob)]);
    let mut config = site.config(
        Some(next.server(Valid::Expired, TlsMode::Require)),
        Vec::new(),
    );
    assert!(gateway.reload(Ok(config.clone())).is_err());
    run_well("nbdinfo", &[&uri(&gateway, "disk", &alice)]);
    config.tls = Some(next.server(Valid::Now, TlsMode::Require));
    let reloaded = gateway.reload(Ok(config.clone())).unwrap();
    assert_eq!(reloaded.to_string(), "for new connections: tls");
    let again = gateway.reload(Ok(config.clone())).unwrap();
    assert_eq!(again.to_string(), "nothing has changed");
    // Another certificate under the same name.
    config.tls = Some(next.server(Valid::Now, TlsMode::Require));
    let renewed = gateway.reload(Ok(config)).unwrap();
    assert_eq!(renewed.for_new_connections, ["tls"]);
    run_well("nbdinfo", &[&uri(&gateway, "disk", &bob)]);
    fails("nbdinfo", &[&uri(&gateway, "disk", &alice)]);
    gateway.shutdown();
}

#[test]
fn without_an_authority_everybody_gets_in_but_by_no_certificate() {
    let site = Site::new();
    let own = &site.authority;
    let stranger = Authority::new(site.dir.path(), "stranger");
    let mut config = site.config(Some(own.server(Valid::Now, TlsMode::Require)), Vec::new());
    assert!(config.advice().is_empty(), "{:?}", config.advice());
    config.tls.as_mut().unwrap().client_ca = None;
    let [advice] = config.advice()[..] else {
        panic!("{:?}", config.advice())
    };
    assert!(
        advice.contains("everybody who can connect gets in"),
        "{advice}"
    );
    let gateway = Gateway::start(&config).unwrap();
    let nobody = own.nobody();
    let mallory = stranger.client("mallory", Valid::Now, own);
    for anybody in [&nobody, &mallory] {
        run_well("nbdinfo", &[&uri(&gateway, "disk", anybody)]);
    }
    config.access = vec![AccessRule {
        client: "mallory*".to_owned(),
        export: "*".to_owned(),
        rights: Rights::ReadWrite,
    }];
    let reloaded = gateway.reload(Ok(config)).unwrap();
    assert_eq!(reloaded.to_string(), "for new connections: access");
    fails("nbdinfo", &[&uri(&gateway, "disk", &mallory)]);
    gateway.shutdown();
}

#[test]
fn a_client_that_says_nothing_within_tls_is_given_up() {
    let site = Site::new();
    let gateway = site.gateway(TlsMode::Require, Vec::new());
    let mut stream = conversation(&gateway, &option(5, &[]));
    stream.read_exact(&mut [0; 20]).unwrap();
    // The head of a record that never becomes whole.
    stream.write_all(&[22, 3, 1, 2, 0]).unwrap();
    assert!(at_end(&mut stream));
    gateway.shutdown();
}
