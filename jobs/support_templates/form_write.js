return request.messages.map((message) => `${message.role}: ${message.text}`).join("\n");
