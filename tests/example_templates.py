"""The sentences that the example data of the tasks are made of: translations of each other, with places to fill."""

from __future__ import annotations

CITIES = {  # as they stand after "in"
    "en": ("Lima", "Vienna", "Madrid", "Berlin", "Geneva", "Oslo", "Prague", "Dublin", "Lisbon", "Warsaw"),
    "fr": ("Lima", "Vienne", "Madrid", "Berlin", "Genève", "Oslo", "Prague", "Dublin", "Lisbonne", "Varsovie"),
    "es": ("Lima", "Viena", "Madrid", "Berlín", "Ginebra", "Oslo", "Praga", "Dublín", "Lisboa", "Varsovia"),
    "de": ("Lima", "Wien", "Madrid", "Berlin", "Genf", "Oslo", "Prag", "Dublin", "Lissabon", "Warschau"),
    "nl": ("Lima", "Wenen", "Madrid", "Berlijn", "Genève", "Oslo", "Praag", "Dublin", "Lissabon", "Warschau"),
    "ru": ("Лиме", "Вене", "Мадриде", "Берлине", "Женеве", "Осло", "Праге", "Дублине", "Лиссабоне", "Варшаве"),
    "ar": ("ليما", "فيينا", "مدريد", "برلين", "جنيف", "أوسلو", "براغ", "دبلن", "لشبونة", "وارسو"),
    "zh": ("利马", "维也纳", "马德里", "柏林", "日内瓦", "奥斯陆", "布拉格", "都柏林", "里斯本", "华沙"),
}
LATIN_NAMES = ("Anna", "Maria", "Elena", "Julia", "Sofia", "Nora")
NAMES = {
    **dict.fromkeys(("en", "fr", "es", "de", "nl"), LATIN_NAMES),
    "ru": ("Анна", "Мария", "Елена", "Юлия", "София", "Нора"),
    "ar": ("آنا", "ماريا", "إلينا", "جوليا", "صوفيا", "نورا"),
    "zh": ("安娜", "玛丽亚", "埃琳娜", "朱莉娅", "索菲娅", "诺拉"),
}
LATIN_SURNAMES = ("Berg", "Torres", "Novak", "Silva", "Lindt", "Rossi")
SURNAMES = {
    **dict.fromkeys(("en", "fr", "es", "de", "nl"), LATIN_SURNAMES),
    "ru": ("Берг", "Торрес", "Новак", "Сильва", "Линдт", "Росси"),
    "zh": ("贝格", "托雷斯", "诺瓦克", "席尔瓦", "林特", "罗西"),
}
BETWEEN_NAMES = {"zh": "·"}

# A premise, and what is entailed, contradicted and left open by it. {u} is another time than {t}.
INFERENCES = {
    "train": {
        "en": (
            "In {c}, {n} took the train at {t}.",
            "{n} travelled by train.",
            "{n} took the train at {u}.",
            "{n} paid {p} € for the ticket.",
        ),
        "fr": (
            "À {c}, {n} a pris le train à {t}.",
            "{n} a voyagé en train.",
            "{n} a pris le train à {u}.",
            "{n} a payé le billet {p} €.",
        ),
        "es": (
            "En {c}, {n} tomó el tren a las {t}.",
            "{n} viajó en tren.",
            "{n} tomó el tren a las {u}.",
            "{n} pagó {p} € por el billete.",
        ),
        "de": (
            "In {c} nahm {n} den Zug um {t}.",
            "{n} fuhr mit dem Zug.",
            "{n} nahm den Zug um {u}.",
            "{n} zahlte {p} € für die Fahrkarte.",
        ),
        "ru": (
            "В {c} {n} села на поезд в {t}.",
            "{n} ехала на поезде.",
            "{n} села на поезд в {u}.",
            "{n} заплатила {p} € за билет.",
        ),
        "ar": (
            "في {c} ركبت {n} القطار في الساعة {t}.",
            "سافرت {n} بالقطار.",
            "ركبت {n} القطار في الساعة {u}.",
            "دفعت {n} {p} € ثمنا للتذكرة.",
        ),
        "zh": ("{n}在{c}坐上了 {t} 的火车。", "{n}坐了火车。", "{n}坐的是 {u} 的火车。", "{n}买票花了 {p} €。"),
    },
    "concert": {
        "en": (
            "The concert in {c} began at {t}.",
            "There was a concert in {c}.",
            "The concert began at {u}.",
            "Each seat at the concert cost {p} €.",
        ),
        "fr": (
            "Le concert à {c} a commencé à {t}.",
            "Il y a eu un concert à {c}.",
            "Le concert a commencé à {u}.",
            "Chaque place du concert coûtait {p} €.",
        ),
        "es": (
            "El concierto en {c} empezó a las {t}.",
            "Hubo un concierto en {c}.",
            "El concierto empezó a las {u}.",
            "Cada asiento del concierto costaba {p} €.",
        ),
        "de": (
            "Das Konzert in {c} begann um {t}.",
            "In {c} gab es ein Konzert.",
            "Das Konzert begann um {u}.",
            "Jeder Platz im Konzert kostete {p} €.",
        ),
        "ru": (
            "Концерт в {c} начался в {t}.",
            "В {c} был концерт.",
            "Концерт начался в {u}.",
            "Каждое место на концерте стоило {p} €.",
        ),
        "ar": (
            "بدأ الحفل في {c} في الساعة {t}.",
            "كان هناك حفل في {c}.",
            "بدأ الحفل في الساعة {u}.",
            "كان سعر كل مقعد في الحفل {p} €.",
        ),
        "zh": ("{c}的音乐会 {t} 开始。", "{c}有一场音乐会。", "音乐会 {u} 开始。", "音乐会每个座位 {p} €。"),
    },
    "museum": {
        "en": (
            "The museum in {c} opens at {t} every day.",
            "The museum in {c} is open every day.",
            "The museum opens at {u}.",
            "A visit to the museum costs {p} €.",
        ),
        "fr": (
            "Le musée à {c} ouvre tous les jours à {t}.",
            "Le musée à {c} est ouvert tous les jours.",
            "Le musée ouvre à {u}.",
            "Une visite du musée coûte {p} €.",
        ),
        "es": (
            "El museo en {c} abre todos los días a las {t}.",
            "El museo en {c} está abierto todos los días.",
            "El museo abre a las {u}.",
            "Una visita al museo cuesta {p} €.",
        ),
        "de": (
            "Das Museum in {c} öffnet jeden Tag um {t}.",
            "Das Museum in {c} ist jeden Tag geöffnet.",
            "Das Museum öffnet um {u}.",
            "Ein Besuch im Museum kostet {p} €.",
        ),
        "ru": (
            "Музей в {c} открывается каждый день в {t}.",
            "Музей в {c} открыт каждый день.",
            "Музей открывается в {u}.",
            "Посещение музея стоит {p} €.",
        ),
        "ar": (
            "يفتح المتحف في {c} كل يوم في الساعة {t}.",
            "المتحف في {c} مفتوح كل يوم.",
            "يفتح المتحف في الساعة {u}.",
            "تكلفة زيارة المتحف {p} €.",
        ),
        "zh": ("{c}的博物馆每天 {t} 开门。", "{c}的博物馆每天都开门。", "博物馆 {u} 开门。", "参观博物馆要 {p} €。"),
    },
    "bus": {
        "en": (
            "{n} missed the bus at {t}.",
            "{n} was too late for the bus.",
            "{n} caught the bus at {t}.",
            "{n} took a taxi for {p} €.",
        ),
        "fr": (
            "{n} a manqué le bus de {t}.",
            "{n} est arrivée trop tard pour le bus.",
            "{n} a pris le bus de {t}.",
            "{n} a pris un taxi pour {p} €.",
        ),
        "es": (
            "{n} perdió el autobús de las {t}.",
            "{n} llegó tarde al autobús.",
            "{n} tomó el autobús de las {t}.",
            "{n} tomó un taxi por {p} €.",
        ),
        "de": (
            "{n} verpasste den Bus um {t}.",
            "{n} kam zu spät zum Bus.",
            "{n} nahm den Bus um {t}.",
            "{n} nahm ein Taxi für {p} €.",
        ),
        "ru": (
            "{n} опоздала на автобус в {t}.",
            "{n} не успела на автобус.",
            "{n} уехала на автобусе в {t}.",
            "{n} взяла такси за {p} €.",
        ),
        "ar": (
            "فاتت الحافلة {n} في الساعة {t}.",
            "تأخرت {n} عن الحافلة.",
            "ركبت {n} الحافلة في الساعة {t}.",
            "ركبت {n} سيارة أجرة بمبلغ {p} €.",
        ),
        "zh": (
            "{n}没赶上 {t} 的公交车。",
            "{n}到得太晚，没坐上公交车。",
            "{n}坐上了 {t} 的公交车。",
            "{n}花 {p} € 坐了出租车。",
        ),
    },
    "market": {
        "en": (
            "At {t}, {n} bought fresh bread at the market.",
            "{n} bought bread.",
            "{n} did not buy any bread.",
            "The bread cost {p} €.",
        ),
        "fr": (
            "À {t}, {n} a acheté du pain frais au marché.",
            "{n} a acheté du pain.",
            "{n} n'a pas acheté de pain.",
            "Le pain a coûté {p} €.",
        ),
        "es": (
            "A las {t}, {n} compró pan fresco en el mercado.",
            "{n} compró pan.",
            "{n} no compró pan.",
            "El pan costó {p} €.",
        ),
        "de": (
            "Um {t} kaufte {n} frisches Brot auf dem Markt.",
            "{n} kaufte Brot.",
            "{n} kaufte kein Brot.",
            "Das Brot kostete {p} €.",
        ),
        "ru": (
            "В {t} {n} купила свежий хлеб на рынке.",
            "{n} купила хлеб.",
            "{n} не купила хлеба.",
            "Хлеб стоил {p} €.",
        ),
        "ar": (
            "في الساعة {t} اشترت {n} خبزا طازجا من السوق.",
            "اشترت {n} خبزا.",
            "لم تشتر {n} أي خبز.",
            "كان ثمن الخبز {p} €.",
        ),
        "zh": ("{t} 时，{n}在市场买了新鲜面包。", "{n}买了面包。", "{n}没有买面包。", "面包花了 {p} €。"),
    },
    "lesson": {
        "en": (
            "{n} teaches music in {c} until {t}.",
            "{n} works in {c}.",
            "{n} teaches until {u}.",
            "{n} earns {p} € an hour.",
        ),
        "fr": (
            "{n} enseigne la musique à {c} jusqu'à {t}.",
            "{n} travaille à {c}.",
            "{n} enseigne jusqu'à {u}.",
            "{n} gagne {p} € de l'heure.",
        ),
        "es": (
            "{n} enseña música en {c} hasta las {t}.",
            "{n} trabaja en {c}.",
            "{n} enseña hasta las {u}.",
            "{n} gana {p} € por hora.",
        ),
        "de": (
            "{n} unterrichtet in {c} Musik bis {t}.",
            "{n} arbeitet in {c}.",
            "{n} unterrichtet bis {u}.",
            "{n} verdient {p} € in der Stunde.",
        ),
        "ru": (
            "{n} преподаёт музыку в {c} до {t}.",
            "{n} работает в {c}.",
            "{n} преподаёт до {u}.",
            "{n} зарабатывает {p} € в час.",
        ),
        "ar": (
            "تدرّس {n} الموسيقى في {c} حتى الساعة {t}.",
            "تعمل {n} في {c}.",
            "تدرّس {n} حتى الساعة {u}.",
            "تكسب {n} {p} € في الساعة.",
        ),
        "zh": ("{n}在{c}教音乐，教到 {t} 为止。", "{n}在{c}工作。", "{n}教到 {u} 为止。", "{n}每小时挣 {p} €。"),
    },
}

# A text; questions that ask for the year {y}, the person {n} and the number {m}; and the answer to the last of them.
READINGS = {
    "bridge": {
        "en": (
            "The old bridge of {c} was built in {y} by {n}. It is {m} metres long and {k} people cross it every day.",
            "When was the bridge of {c} built?",
            "Who built the bridge of {c}?",
            "How long is the bridge of {c}?",
            "{m} metres",
        ),
        "es": (
            "El viejo puente de {c} fue construido en {y} por {n}. Mide {m} metros y {k} personas lo cruzan cada día.",
            "¿Cuándo fue construido el puente de {c}?",
            "¿Quién construyó el puente de {c}?",
            "¿Cuánto mide el puente de {c}?",
            "{m} metros",
        ),
        "de": (
            "Die alte Brücke von {c} wurde {y} von {n} gebaut. Sie ist {m} Meter lang, und jeden Tag gehen {k} "
            "Menschen über sie.",
            "Wann wurde die Brücke von {c} gebaut?",
            "Wer hat die Brücke von {c} gebaut?",
            "Wie lang ist die Brücke von {c}?",
            "{m} Meter",
        ),
        "zh": (
            "{c}的老桥由{n}于 {y} 年建成。这座桥长 {m} 米，每天有 {k} 人从桥上走过。",
            "{c}的桥是哪一年建成的？",
            "{c}的桥是谁建的？",
            "{c}的桥有多长？",
            "{m} 米",
        ),
    },
    "museum": {
        "en": (
            "The museum of {c} opened in {y}. Its first director was {n}. Today it shows {m} paintings, and {k} "
            "visitors come every month.",
            "When did the museum of {c} open?",
            "Who was the first director of the museum of {c}?",
            "How many paintings does the museum of {c} show?",
            "{m}",
        ),
        "es": (
            "El museo de {c} abrió en {y}. Su primera directora fue {n}. Hoy muestra {m} cuadros y cada mes vienen {k} "
            "visitantes.",
            "¿Cuándo abrió el museo de {c}?",
            "¿Quién fue la primera directora del museo de {c}?",
            "¿Cuántos cuadros muestra el museo de {c}?",
            "{m}",
        ),
        "de": (
            "Das Museum von {c} wurde {y} eröffnet. Seine erste Direktorin war {n}. Heute zeigt es {m} Gemälde, und "
            "jeden Monat kommen {k} Besucher.",
            "Wann wurde das Museum von {c} eröffnet?",
            "Wer war die erste Direktorin des Museums von {c}?",
            "Wie viele Gemälde zeigt das Museum von {c}?",
            "{m}",
        ),
        "zh": (
            "{c}博物馆于 {y} 年开放，第一任馆长是{n}。如今馆内展出 {m} 幅画，每月有 {k} 人前来参观。",
            "{c}博物馆是哪一年开放的？",
            "{c}博物馆的第一任馆长是谁？",
            "{c}博物馆展出多少幅画？",
            "{m}",
        ),
    },
    "train": {
        "en": (
            "The first train reached {c} in {y}. It was driven by {n}, with {m} passengers on board, and {k} people "
            "were waiting at the station.",
            "When did the first train reach {c}?",
            "Who drove the first train to {c}?",
            "How many passengers were on the first train to {c}?",
            "{m}",
        ),
        "es": (
            "El primer tren llegó a {c} en {y}. Lo condujo {n}, llevaba {m} pasajeros y en la estación esperaban {k} "
            "personas.",
            "¿Cuándo llegó el primer tren a {c}?",
            "¿Quién condujo el primer tren a {c}?",
            "¿Cuántos pasajeros llevaba el primer tren a {c}?",
            "{m}",
        ),
        "de": (
            "Der erste Zug erreichte {c} im Jahr {y}. Gefahren wurde er von {n}, mit {m} Fahrgästen an Bord, und am "
            "Bahnhof warteten {k} Menschen.",
            "Wann erreichte der erste Zug {c}?",
            "Wer fuhr den ersten Zug nach {c}?",
            "Wie viele Fahrgäste waren im ersten Zug nach {c}?",
            "{m}",
        ),
        "zh": (
            "第一列火车于 {y} 年到达{c}。司机是{n}，车上有 {m} 名乘客，车站里有 {k} 人在等候。",
            "第一列火车是哪一年到达{c}的？",
            "开往{c}的第一列火车的司机是谁？",
            "开往{c}的第一列火车上有多少名乘客？",
            "{m}",
        ),
    },
    "school": {
        "en": (
            "The music school of {c} has {m} pupils. It was founded by {n} in {y}, and {k} concerts have taken place "
            "there since.",
            "When was the music school of {c} founded?",
            "Who founded the music school of {c}?",
            "How many pupils does the music school of {c} have?",
            "{m}",
        ),
        "es": (
            "La escuela de música de {c} tiene {m} alumnos. Fue fundada por {n} en {y} y desde entonces se han "
            "celebrado allí {k} conciertos.",
            "¿Cuándo fue fundada la escuela de música de {c}?",
            "¿Quién fundó la escuela de música de {c}?",
            "¿Cuántos alumnos tiene la escuela de música de {c}?",
            "{m}",
        ),
        "de": (
            "Die Musikschule von {c} hat {m} Schüler. Gegründet wurde sie von {n} im Jahr {y}, und seitdem fanden dort "
            "{k} Konzerte statt.",
            "Wann wurde die Musikschule von {c} gegründet?",
            "Wer hat die Musikschule von {c} gegründet?",
            "Wie viele Schüler hat die Musikschule von {c}?",
            "{m}",
        ),
        "zh": (
            "{c}音乐学校有 {m} 名学生。学校由{n}于 {y} 年创办，此后在这里举行了 {k} 场音乐会。",
            "{c}音乐学校是哪一年创办的？",
            "{c}音乐学校是谁创办的？",
            "{c}音乐学校有多少名学生？",
            "{m}",
        ),
    },
}

# Words with a blank between any two. {p} and {q} are persons, {o} is an organisation.
PLACES = {
    language: (*cities, new_york)
    for (language, cities), new_york in zip(
        ((each, CITIES[each]) for each in ("en", "nl", "es", "de", "ru")),
        ("New York", "New York", "Nueva York", "New York", "Нью-Йорке"),
        strict=True,
    )
}
LATIN_ORGANISATIONS = ("Nordwind", "Lumen Bank", "Radio Alta", "Kaskade", "Blue Fox Media", "Delta Post")
ORGANISATIONS = {
    **dict.fromkeys(("en", "nl", "es", "de"), LATIN_ORGANISATIONS),
    "ru": ("Нордвинд", "Люмен Банк", "Радио Альта", "Каскад", "Блю Фокс Медиа", "Дельта Пост"),
}
REPORTS = {
    "en": (
        "{p} works for {o} in {c} .",
        "Yesterday {p} was in {c} .",
        "{o} opened a new office in {c} .",
        "The weather in {c} was cold and wet .",
        "{p} wrote a letter to {o} .",
        "{p} and {q} live in {c} .",
        "The train was late again this morning .",
        "Two hundred people work for {o} , says {p} .",
    ),
    "nl": (
        "{p} werkt voor {o} in {c} .",
        "Gisteren was {p} in {c} .",
        "{o} opende een nieuw kantoor in {c} .",
        "Het weer in {c} was koud en nat .",
        "{p} schreef een brief aan {o} .",
        "{p} en {q} wonen in {c} .",
        "De trein was vanochtend weer te laat .",
        "Tweehonderd mensen werken voor {o} , zegt {p} .",
    ),
    "es": (
        "{p} trabaja para {o} en {c} .",
        "Ayer {p} estuvo en {c} .",
        "{o} abrió una nueva oficina en {c} .",
        "El tiempo en {c} era frío y húmedo .",
        "{p} escribió una carta a {o} .",
        "{p} y {q} viven en {c} .",
        "El tren llegó tarde otra vez esta mañana .",
        "Doscientas personas trabajan para {o} , dice {p} .",
    ),
    "de": (
        "{p} arbeitet für {o} in {c} .",
        "Gestern war {p} in {c} .",
        "{o} hat in {c} ein neues Büro eröffnet .",
        "Das Wetter in {c} war kalt und nass .",
        "{p} schrieb einen Brief an {o} .",
        "{p} und {q} leben in {c} .",
        "Der Zug hatte heute Morgen wieder Verspätung .",
        "Zweihundert Menschen arbeiten für {o} , sagt {p} .",
    ),
    "ru": (
        "{p} работает в компании {o} в {c} .",
        "Вчера {p} была в {c} .",
        "Компания {o} открыла новый офис в {c} .",
        "Погода в {c} была холодной и сырой .",
        "{p} написала письмо в компанию {o} .",
        "{p} и {q} живут в {c} .",
        "Сегодня утром поезд снова опоздал .",
        "Двести человек работают в компании {o} , говорит {p} .",
    ),
}
