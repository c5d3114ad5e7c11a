//! `kaleidoscope keys`: certificates for page servers and clients that have none.

use crate::failure::Failure;
use crate::interrupt::{Armed, Undo, arm_with};
use crate::outfile::Output;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Make keys and certificates with which page servers and their clients know each other.
///
/// Writes an authority (ca.pem, ca-key.pem), a server's certificate and key (server.pem,
/// server-key.pem) and a client's (client.pem, client-key.pem). Files can be read by their owner
/// only, and none is ever replaced.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope keys -o keys
      keys for a server and clients on this host
  kaleidoscope keys -o keys --server-name pages.example --server-name 192.0.2.7
      keys for a server that clients reach by these names

Give the server ca.pem, server.pem and server-key.pem, and each client ca.pem, client.pem and
client-key.pem. ca-key.pem signs further certificates: keep it in another place.")]
pub(crate) struct Args {
    /// Folder for the files; it is made if there is none
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Name or IP address by which clients reach the server; may be given several times
    #[arg(
        long,
        value_name = "NAME",
        default_values = ["localhost", "127.0.0.1", "::1"]
    )]
    server_name: Vec<String>,
    /// Name of the client, by which a server can tell clients apart
    #[arg(long, value_name = "NAME", default_value = "client")]
    client_name: String,
    /// Days for which the certificates are valid
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

/// The files that are written: names and texts.
type Files = Vec<(&'static str, String)>;

impl Args {
    /// Makes the keys and writes them.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let files = self.make().map_err(|error| {
            Failure::new(format_args!("no certificate can be made: {error}"))
                .hint("names are DNS names (pages.example) or IP addresses (192.0.2.7)")
        })?;
        self.write(&files)?;
        let listed: String = files
            .iter()
            .map(|(name, _)| format!("{}\n", self.output.join(name).display()))
            .collect();
        crate::stdio::print(&listed)
    }

    fn make(&self) -> Result<Files, rcgen::Error> {
        let authority_key = KeyPair::generate()?;
        let mut params = self.params(&[], "Kaleidoscope authority")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = params.self_signed(&authority_key)?.pem();
        let mut files = vec![("ca.pem", authority), ("ca-key.pem", authority_key.serialize_pem())];
        let issuer = Issuer::new(params, authority_key);

        let client_names = std::slice::from_ref(&self.client_name);
        let server = ("server.pem", "server-key.pem", ExtendedKeyUsagePurpose::ServerAuth);
        let client = ("client.pem", "client-key.pem", ExtendedKeyUsagePurpose::ClientAuth);
        for ((certificate_file, key_file, usage), names) in
            [(server, self.server_name.as_slice()), (client, client_names)]
        {
            let name = names.first().map_or("server", String::as_str);
            let mut params = self.params(names, name)?;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![usage];
            params.use_authority_key_identifier_extension = true;
            let key = KeyPair::generate()?;
            files.push((certificate_file, params.signed_by(&key, &issuer)?.pem()));
            files.push((key_file, key.serialize_pem()));
        }
        Ok(files)
    }

    fn params(&self, names: &[String], common: &str) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, common);
        let now = time::OffsetDateTime::now_utc();
        // Clocks of other hosts may be behind.
        params.not_before = now - time::Duration::hours(1);
        params.not_after = now + time::Duration::days(i64::from(self.days));
        Ok(params)
    }

    fn write(&self, files: &Files) -> Result<(), Failure> {
        let folder = &self.output;
        let is_new = !exists(folder);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| Failure::unwritable(folder, &error))?;
        // All or nothing, as far as that goes: half a set is no use.
        if let Some((name, _)) = files.iter().find(|(name, _)| exists(&folder.join(name))) {
            return Err(Failure::at(&folder.join(name), "the file exists, and is left alone")
                .hint("choose another folder, or remove the old keys yourself"));
        }
        let undo = |path: &Path| arm_with(Undo::Remove(path.to_owned()), || Ok::<_, Failure>(()));
        let mut written = Vec::new();
        if is_new {
            written.push(undo(folder)?.1);
        }
        for (name, text) in files {
            let path = folder.join(name);
            let file = Output::secret(&path)?;
            written.push(undo(&path)?.1);
            file.write(|out| out.write_all(text.as_bytes()))?;
        }
        written.into_iter().for_each(Armed::disarm);
        Ok(())
    }
}

fn exists(path: &Path) -> bool {
    !path.symlink_metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kaleidoscope_core::clone::ServerAddress;
    use kaleidoscope_core::wire::transport::tls::{ClientTls, Credentials, ServerTls};
    use kaleidoscope_core::wire::transport::{
        ConnectOptions, ListenOptions, Listener, Peer, connect,
    };
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    #[test]
    fn keys_open_a_link_and_are_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new/keys");
        let args = Args {
            output: folder.clone(),
            server_name: vec!["pages.example".to_owned(), "127.0.0.1".to_owned()],
            client_name: "host-7".to_owned(),
            days: 1,
        };
        args.run().unwrap();
        for entry in std::fs::read_dir(&folder).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        let credentials = |of: &str| {
            let file = |name: &str| folder.join(format!("{of}{name}"));
            let ca = folder.join("ca.pem");
            Credentials::from_files(&file(".pem"), &file("-key.pem"), &ca).unwrap()
        };
        let tls = ServerTls::new(credentials("server"), &["host-7".to_owned()]).unwrap();
        let listen = ListenOptions::default().tls(Some(tls));
        let at = ServerAddress::Tcp("127.0.0.1:0".to_owned());
        let listener = Listener::bind(&at, listen).unwrap();
        let tls = Some(ClientTls::new(credentials("client"), None).unwrap());
        let options = ConnectOptions::default().tls(tls);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| connect(&listener.local_address(), &options).unwrap());
            let server = listener.accept(Duration::from_secs(60)).unwrap().unwrap();
            let Peer::Tcp { subject: Some(subject), .. } = server.peer else { panic!() };
            assert_eq!(subject.names, ["host-7"]);
            client.join().unwrap();
        });
        let before = std::fs::read(folder.join("ca.pem")).unwrap();
        assert!(args.run().unwrap_err().to_string().contains("left alone"));
        assert_eq!(std::fs::read(folder.join("ca.pem")).unwrap(), before);
        let bad = Args { server_name: vec!["not a näme".to_owned()], ..args };
        assert!(bad.run().is_err());
    }
}
