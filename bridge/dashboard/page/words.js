"use strict";
// Every word on the page, in both languages. Names of zones and kinds that are not here are shown as they are.
const words = {
  en: {
    title: "City, live", devices: "Devices", readings: "Readings", rate: "Per second", latest: "Latest readings", filter: "Filter",
    time: "Time", zone: "Zone", kind: "Measure", device: "Device", value: "Value", average: "average", last: "last",
    fresh: "New devices", empty: "Waiting for the first readings. They appear here as soon as a device publishes to city/<zone>/<measure>/<device>.",
    connecting: "Connecting…", live: "Live", lost: "Connection lost, trying again…", quiet: "No reading for {s} s",
    chart: "{kind} in {zone}: {n} points over five minutes, now {value}",
    zones: { north: "North", south: "South", east: "East", west: "West", centre: "Centre", harbour: "Harbour" },
    kinds: { temperature: "Temperature", air_quality: "Air quality", traffic: "Traffic", noise: "Noise", parking: "Parking", lighting: "Street lighting" },
  },
  fr: {
    title: "La ville en direct", devices: "Capteurs", readings: "Mesures", rate: "Par seconde", latest: "Dernières mesures", filter: "Filtrer",
    time: "Heure", zone: "Zone", kind: "Grandeur", device: "Capteur", value: "Valeur", average: "moyenne", last: "dernière",
    fresh: "Nouveaux capteurs", empty: "En attente des premières mesures. Elles apparaissent ici dès qu’un capteur publie sur city/<zone>/<grandeur>/<capteur>.",
    connecting: "Connexion…", live: "En direct", lost: "Connexion perdue, nouvel essai…", quiet: "Aucune mesure depuis {s} s",
    chart: "{kind}, {zone} : {n} points sur cinq minutes, actuellement {value}",
    zones: { north: "Nord", south: "Sud", east: "Est", west: "Ouest", centre: "Centre", harbour: "Port" },
    kinds: { temperature: "Température", air_quality: "Qualité de l’air", traffic: "Trafic", noise: "Bruit", parking: "Stationnement", lighting: "Éclairage public" },
  },
};
// The units as devices send them (SenML, RFC 8428 section 12.1, and plain ones), as people read them.
const units = { Cel: "°C", "%": "%", "/": "", dB: "dB", "dB(A)": "dB(A)", lx: "lx", "ug/m3": "µg/m³", "1/min": "/min" };
