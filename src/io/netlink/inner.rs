//! The interface of a session that has a network namespace to itself: it follows the session's addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::sys::TokioSocket;
use rtnetlink::{Handle, RouteMessageBuilder};
use rustix::io::ioctl_fionbio;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use super::{Netlink, NetlinkError, refused};
use crate::wire::InnerConfig;

impl Netlink {
    /// Opens a netlink socket in the network namespace of the calling thread, for [`Netlink::over`] in another process.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn socket() -> Result<OwnedFd, NetlinkError> {
        let open = || {
            // The protocol of the routing socket is number 0, which is also the default.
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
            bind(&socket, &SocketAddrNetlink::new(0, 0))?;
            Ok(socket)
        };
        open().map_err(|error: rustix::io::Errno| NetlinkError::Open(error.into()))
    }

    /// Speaks over a socket made by [`Netlink::socket`], of the namespace where that was made; needs a tokio runtime.
    ///
    /// The caller needs CAP_NET_ADMIN over that namespace for changes. Whoever made its user namespace has it.
    ///
    /// # Errors
    /// [`NetlinkError::Open`] when it is no socket.
    pub fn over(socket: OwnedFd) -> Result<Self, NetlinkError> {
        ioctl_fionbio(&socket, true).map_err(|error| NetlinkError::Open(error.into()))?;
        // SAFETY: the descriptor is open and given away here; nothing else has it.
        let socket = unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) };
        let (connection, handle, _) = rtnetlink::from_socket(socket);
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Gives `interface` the MTU and the addresses of `config` and no others, switches it on, and leads everything
    /// through it. A family that the session has no address of gets no route. What is so already stays as it is.
    ///
    /// # Errors
    /// [`NetlinkError`]. Of the second family, a refusal is no error: a kernel may have no IPv6.
    pub async fn follow(&self, interface: &str, config: &InnerConfig) -> Result<(), NetlinkError> {
        for address in self.join(interface, config).await? {
            let index = self.link(interface).await?.index;
            lead(&self.handle, interface, index, address.addr()).await?;
        }
        Ok(())
    }

    /// Gives `interface` the MTU and the addresses of `config` and no others, and switches it on; gives the addresses that
    /// it has then. What is so already stays as it is.
    ///
    /// # Errors
    /// As [`Netlink::follow`].
    pub async fn join(
        &self,
        interface: &str,
        config: &InnerConfig,
    ) -> Result<Vec<IpNet>, NetlinkError> {
        let index = self.link(interface).await?.index;
        self.set_mtu(interface, index, config.mtu).await?;
        let wanted: Vec<IpNet> = config.addresses().into_iter().map(IpNet::from).collect();
        self.remove_others(interface, index, &wanted).await?;
        self.switch_on(interface, index).await?;
        let present = self.addresses(index).await?;
        let mut refusal = None;
        let mut up = Vec::new();
        for address in wanted {
            let added = if present.contains(&address) {
                Ok(())
            } else {
                self.add_address(interface, index, address).await
            };
            match added {
                Ok(()) => up.push(address),
                Err(error) => refusal = Some(error),
            }
        }
        match refusal {
            Some(error) if up.is_empty() => Err(error),
            Some(error) => {
                tracing::warn!(%error, "one family of addresses is not used");
                Ok(up)
            }
            None => Ok(up),
        }
    }

    async fn remove_others(
        &self,
        interface: &str,
        index: u32,
        wanted: &[IpNet],
    ) -> Result<(), NetlinkError> {
        let addresses = self.handle.address();
        let mut present = addresses.get().set_link_index_filter(index).execute();
        let mut others = Vec::new();
        while let Some(message) = present.try_next().await.map_err(NetlinkError::List)? {
            let prefix = message.header.prefix_len;
            let is_wanted = message.attributes.iter().any(|attribute| {
                matches!(attribute, AddressAttribute::Address(address)
                    if IpNet::new(*address, prefix).is_ok_and(|net| wanted.contains(&net)))
            });
            if !is_wanted {
                others.push(message);
            }
        }
        for message in others {
            let removed = self.handle.address().del(message).execute().await;
            removed.map_err(refused(interface, "remove an address"))?;
        }
        Ok(())
    }
}

/// Leads everything of the family of `address` through the interface. With the family's last address its routes go, too.
async fn lead(
    handle: &Handle,
    interface: &str,
    index: u32,
    address: IpAddr,
) -> Result<(), NetlinkError> {
    let message = match address {
        IpAddr::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(index)
            .build(),
        IpAddr::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new()
            .output_interface(index)
            .build(),
    };
    let added = handle.route().add(message).replace().execute().await;
    added.map_err(refused(interface, "set the default route"))
}
